"""What a sweep's table calls its jobs."""

from lmtrain.launcher import swept


def test_jobs_are_called_by_what_differs() -> None:
    jobs = [["name=x", "seed=1", "lr=1"], ["name=x", "seed=1", "lr=2"]]
    assert [swept(job, jobs) for job in jobs] == ["lr=1", "lr=2"]
    assert swept(jobs[0], jobs[:1]) == "(none)"
