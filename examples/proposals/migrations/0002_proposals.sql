-- For proposals_by_status and author_card. An index on what is inside of a document has its price:
-- a Save of any kind then writes its row to a new place, and to the primary key's index too.

CREATE INDEX proposal_by_status
    ON duostore.entity (tenant, (data ->> 'status'), update_time)
    WHERE kind = 'proposal' AND NOT deleted;

CREATE INDEX proposal_by_author
    ON duostore.entity (tenant, (data ->> 'author'))
    WHERE kind = 'proposal' AND NOT deleted;
