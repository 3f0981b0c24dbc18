"""The parts that tests prove and scripts share, one file for each subject. Imports go one way:

corpus <- pairs <- bmwqa_utils <- dataset; bmwqa_utils <- one_pass <- answers <- export <- models
models, preflight, machine, settings <- run; answers, int8, pruning, settings <- preflight
pairs <- scores <- results, retrieval; retrieval <- ask; report <- export; machine <- models
linear <- activations <- models; settings <- bmwqa_utils; corpus <- pressclub <- chrome
"""

import os

# torch's switch for large pages: a step frees gigabytes and gets them again, zeroed, page by page.
# torch reads it at its first tensor, and peft makes one when it is imported: import bmwqa before.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
