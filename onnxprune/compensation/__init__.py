"""Repair: new weights for the layers that read fewer channels than before. Formulas only; who runs the model is calibration's business."""
