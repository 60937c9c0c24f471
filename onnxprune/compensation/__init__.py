"""Repair: new weights for the layers that read fewer channels than before. Formulas only; running the model is calibration's."""
