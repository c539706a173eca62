"""The book around tdlib: corpus, training, export, analysis, runs, report, workflow.

Each room imports only those to its right: book, workflow, report, analysis or export, training or
corpus, runs, tdlib.
"""

import sys

# jsonschema, which papermill and nbconvert import, would build a grammar of addresses: a second,
# for nothing here
sys.modules.setdefault("rfc3987_syntax", None)
