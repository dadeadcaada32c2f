DELETE FROM public.country WHERE tenant = :tenant AND code = :id
