"""Result files in; tables, statistics, plots and pages out. Knows no torch and no lm-eval."""
