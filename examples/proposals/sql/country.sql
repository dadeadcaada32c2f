SELECT code AS alpha_2, alpha_3, numeric_code AS numeric, name, official_name, common_name, flag
FROM public.country
WHERE tenant = :tenant AND code = :id
