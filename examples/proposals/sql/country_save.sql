-- An id that is not the country's code is refused: code must not be NULL.
INSERT INTO public.country
    (tenant, code, alpha_3, numeric_code, name, official_name, common_name, flag)
VALUES (
    :tenant,
    CASE WHEN :id = :data ->> 'alpha_2' THEN :id END,
    :data ->> 'alpha_3',
    :data ->> 'numeric',
    :data ->> 'name',
    :data ->> 'official_name',
    :data ->> 'common_name',
    :data ->> 'flag'
)
ON CONFLICT (tenant, code) DO UPDATE SET
    alpha_3 = excluded.alpha_3,
    numeric_code = excluded.numeric_code,
    name = excluded.name,
    official_name = excluded.official_name,
    common_name = excluded.common_name,
    flag = excluded.flag
