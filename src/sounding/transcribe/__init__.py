"""Recognition of long audio: cut at silences, one choice of layers a piece, text with times."""
