"""`dpt prefer`: preference data, the classifier, scores, selection, and tuning on the selected images."""
