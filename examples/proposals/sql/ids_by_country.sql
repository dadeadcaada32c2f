SELECT :tenant AS tenant, :country AS id
