"""``qtl-export``: a checkpoint becomes a bundle of two halves, and is held against the device's own code.

    cli -> config -> exporter -> graph, text, halves -> validation, answers -> card -> place

``exporter.export`` is the way in for programs; it needs the extra ``[export]``.
"""
