SELECT :tenant AS tenant, :code AS id
