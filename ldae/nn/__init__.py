"""Building blocks of networks: attention, transformer, convolutional and U-Net blocks, patches, embeddings."""
