"""Networks: one network, one file; they know no loss, optimiser, file or device."""
