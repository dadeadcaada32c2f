SELECT id, data ->> 'title' AS title, data ->> 'author' AS author, version, update_time
FROM duostore.entity
WHERE
    tenant = :tenant
    AND kind = 'proposal'
    AND NOT deleted
    AND data ->> 'status' = :status
    AND update_time >= :since
ORDER BY update_time DESC, id
