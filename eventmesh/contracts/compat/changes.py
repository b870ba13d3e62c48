def changes(writer, reader, draft): return ()
