SELECT code, name, type, country, parent
FROM public.subdivision
WHERE tenant = :tenant AND code = :id
