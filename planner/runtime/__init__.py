"""Plans that run: torch's own engine, told what to do by a `planner.plan.Plan`."""
