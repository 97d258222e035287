"""`dpt prefer`: preference data, the classifier, scores, selection, and tuning on what was selected."""
