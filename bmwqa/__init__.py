"""The parts that tests prove and scripts share, one file for each subject. Imports go one way:

corpus <- pairs <- bmwqa_utils <- one_pass <- models, answers, run; pairs <- scores; corpus <- report, pressclub.
"""

import os

# torch's switch for large pages: a step frees gigabytes and is given them anew, zeroed, page by page. It is read at the
# first tensor, and peft makes one when it is imported: import bmwqa, or bmwqa_utils, before peft.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
