"""Images, MATLAB's bicubic degradation, evaluation tiles and datasets."""
