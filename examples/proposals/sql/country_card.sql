WITH by_type AS (
    SELECT type, count(*) AS subdivisions
    FROM public.subdivision
    WHERE tenant = :tenant AND country = :id
    GROUP BY type
)
SELECT
    name,
    flag,
    (SELECT coalesce(sum(subdivisions), 0)::bigint FROM by_type) AS subdivisions,
    (SELECT coalesce(jsonb_object_agg(type, subdivisions), '{}') FROM by_type) AS by_type
FROM public.country
WHERE tenant = :tenant AND code = :id
