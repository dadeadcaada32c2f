SELECT code, name, type, parent
FROM public.subdivision
WHERE tenant = :tenant AND country = :country
ORDER BY code
