"""What every op of reformer_c must compute: obvious, slow NumPy in float64.

Nothing here imports reformer_c. Shapes use the letters of DESIGN.md: b batch, h heads, t length,
d head depth, c channels, f feed-forward width, v vocabulary, n rows, r hash rounds, k buckets,
m chunk length. "The paper" is Reformer (Kitaev, Kaiser and Levskaya 2020).
"""
