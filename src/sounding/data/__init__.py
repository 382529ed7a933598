"""Audio files, folders of clips and their features."""
