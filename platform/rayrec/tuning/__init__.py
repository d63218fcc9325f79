"""Recipe x search space -> best recipe, by Ray Tune and Optuna."""
