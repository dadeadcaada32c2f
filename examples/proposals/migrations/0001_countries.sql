-- Tables of this application's own, beside Duostore's. Each tenant has rows of its own.

CREATE TABLE public.country (
    tenant text COLLATE "C" NOT NULL,
    code text COLLATE "C" NOT NULL,
    alpha_3 text NOT NULL,
    numeric_code text NOT NULL,
    name text NOT NULL,
    official_name text,
    common_name text,
    flag text NOT NULL,
    PRIMARY KEY (tenant, code),
    CONSTRAINT country_alpha_3_is_unique UNIQUE (tenant, alpha_3)
);

CREATE TABLE public.subdivision (
    tenant text COLLATE "C" NOT NULL,
    code text COLLATE "C" NOT NULL,
    country text COLLATE "C" NOT NULL,
    type text NOT NULL,
    name text NOT NULL,
    parent text COLLATE "C",
    PRIMARY KEY (tenant, code),
    CONSTRAINT subdivision_code_begins_with_country CHECK (starts_with(code, country || '-')),
    CONSTRAINT subdivision_has_a_country
        FOREIGN KEY (tenant, country) REFERENCES public.country (tenant, code),
    -- Checked at the commit, so that a Transact may save them in any order.
    CONSTRAINT subdivision_has_its_parent
        FOREIGN KEY (tenant, parent) REFERENCES public.subdivision (tenant, code)
        DEFERRABLE INITIALLY DEFERRED
);

CREATE INDEX subdivision_country ON public.subdivision (tenant, country, code);
CREATE INDEX subdivision_parent ON public.subdivision (tenant, parent);
