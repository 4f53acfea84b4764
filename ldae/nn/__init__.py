"""Building blocks of networks: attention, transformer blocks, patches, embeddings."""
