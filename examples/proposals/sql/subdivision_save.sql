-- An id that is not the subdivision's code is refused: code must not be NULL.
INSERT INTO public.subdivision (tenant, code, country, type, name, parent)
VALUES (
    :tenant,
    CASE WHEN :id = :data ->> 'code' THEN :id END,
    coalesce(:data ->> 'country', split_part(:id, '-', 1)),
    :data ->> 'type',
    :data ->> 'name',
    :data ->> 'parent'
)
ON CONFLICT (tenant, code) DO UPDATE SET
    country = excluded.country,
    type = excluded.type,
    name = excluded.name,
    parent = excluded.parent
