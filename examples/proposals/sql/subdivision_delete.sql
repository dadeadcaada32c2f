DELETE FROM public.subdivision WHERE tenant = :tenant AND code = :id
