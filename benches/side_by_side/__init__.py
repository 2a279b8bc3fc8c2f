"""The parts of benches/compare.py: proxies, clients, and the page with the figures."""
