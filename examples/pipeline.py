"""Remote functions whose results feed a third: what a market stall earned in a week.

``deliveries`` and ``prices`` know nothing of each other and run in parallel; ``revenue`` takes
what both return. The references are passed on as they are: nobody waits in between, and the
figures never travel through this process.

Run: python examples/pipeline.py
"""

import regrow as ray

DAYS = ["mon", "tue", "wed", "thu", "fri"]


@ray.remote
def deliveries(day: int) -> dict[str, int]:
    """Return the crates sold on a day, by fruit."""
    return {"apple": 30 + 4 * day, "pear": 18 - day, "quince": (day * day) % 7}


@ray.remote
def prices(day: int) -> dict[str, int]:
    """Return the price of a crate on a day in cents, by fruit."""
    return {"apple": 1250 - 25 * day, "pear": 1400, "quince": 2100 + 50 * day}


@ray.remote
def revenue(crates: dict[str, int], cents: dict[str, int]) -> int:
    """Return what the crates earned, in cents."""
    return sum(count * cents[fruit] for fruit, count in crates.items())


def main() -> dict[str, int]:
    """Return the revenue of each day in cents."""
    earned = [
        revenue.remote(deliveries.remote(day), prices.remote(day)) for day in range(len(DAYS))
    ]
    return dict(zip(DAYS, ray.get(earned), strict=True))


if __name__ == "__main__":
    ray.init()
    week = main()
    for day, cents in week.items():
        print(f"{day}  {cents / 100:9.2f}")
    print(f"sum  {sum(week.values()) / 100:9.2f}")
    ray.shutdown()
