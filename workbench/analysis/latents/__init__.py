"""The latents of one dictionary: codes over a store, contexts, histograms, logits, records, geometry."""
