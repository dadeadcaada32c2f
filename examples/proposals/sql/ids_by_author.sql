SELECT :author AS id WHERE :author IS NOT NULL
