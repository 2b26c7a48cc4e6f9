"""An independent model of a house, by which the bridge's numbers are judged.

The package shares no code with `bridge.simulator`, and takes nothing from the parts of the bridge that count.
`model` is the house: sun, loads, battery, generator, grid and the clamps that count; its own sums are the truth.
`gateway` answers for it over a socket, `broker` takes what the bridge publishes, and `world` runs all of them with
the whole bridge in simulated time. `kinds` lists the kinds of sites, `faults` what may go wrong, `judge` checks
what was published, `statistics` adds energies up as Home Assistant does, and `runs` plays one combination.

    python benchmarks/true_numbers.py             plays all combinations and prints the table
    python benchmarks/true_numbers.py net3 down   plays those whose kind and fault begin so
    pytest tests/test_numbers.py             plays a small part of them
"""
