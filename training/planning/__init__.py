"""jobs.plan. Read cluster, memory_estimate, torchrec_planner, feasibility, feasibility_page."""
