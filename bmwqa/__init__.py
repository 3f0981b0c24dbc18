"""The parts that tests prove and scripts share, one file for each subject. Imports go one way:

corpus <- pairs <- bmwqa_utils <- one_pass <- models <- run; one_pass <- answers
pairs <- scores <- results; settings <- results, run; machine <- run; pressclub <- chrome; report
"""

import os

# torch's switch for large pages: a step frees gigabytes and gets them again, zeroed, page by page.
# torch reads it at its first tensor, and peft makes one when it is imported: import bmwqa before.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
