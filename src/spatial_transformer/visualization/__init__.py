"""Drawing: crops, grids and charts, used by callbacks, prediction and the report."""
