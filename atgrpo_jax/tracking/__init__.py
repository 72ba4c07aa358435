"""Shows the records of runs elsewhere: TensorBoard, Weights & Biases, MLflow, Trackio."""
