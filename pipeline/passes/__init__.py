"""One file a pass over the log. Read job, input, count (duplicates), write, quarantine, publish; reports of tasks."""
