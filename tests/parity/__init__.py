"""The same numbers as Hugging Face's transformers: live, from frozen fixtures, and as published.

`cases` draws configurations and inputs, `live` runs them through transformers, and `ours` through
reformer_c. Only `live` needs torch; `test_published` and `test_fixtures` run everywhere.
"""
