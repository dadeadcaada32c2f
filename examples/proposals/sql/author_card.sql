-- What an author has in proposals: how many by status, and what all items come to by currency.
-- There is no card without a proposal.
WITH proposal AS (
    SELECT data
    FROM duostore.entity
    WHERE tenant = :tenant AND kind = 'proposal' AND NOT deleted AND data ->> 'author' = :id
), by_status AS (
    SELECT data ->> 'status' AS status, count(*) AS proposals
    FROM proposal
    GROUP BY data ->> 'status'
), by_currency AS (
    SELECT
        data ->> 'currency' AS currency,
        sum((item ->> 'quantity')::numeric * (item ->> 'price')::numeric) AS total
    FROM proposal CROSS JOIN LATERAL jsonb_array_elements(data -> 'items') AS item
    GROUP BY data ->> 'currency'
)
SELECT
    (SELECT sum(proposals)::bigint FROM by_status) AS proposals,
    (SELECT jsonb_object_agg(status, proposals) FROM by_status) AS by_status,
    -- As text: a number in a document is a double, and money is not.
    (SELECT coalesce(jsonb_object_agg(currency, total::text), '{}') FROM by_currency) AS totals
WHERE EXISTS (SELECT FROM proposal)
