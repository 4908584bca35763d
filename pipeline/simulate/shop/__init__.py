"""layout=events: a simulated shop with timestamps. Read calendar, page_views, actions, tables, dirt, write (the chain)."""
