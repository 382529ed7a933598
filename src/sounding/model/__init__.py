"""What runs: a pretrained model whose encoder executes the layers that are kept, and no others."""
