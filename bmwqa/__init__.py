"""The parts that tests prove and scripts share, one file for each subject. Imports go one way:

corpus <- pairs <- bmwqa_utils <- models, one_pass <- answers, run <- scores, report.
"""
