"""How quantised numbers are stored, as the gate reads them: a code per element, a scale per block."""
