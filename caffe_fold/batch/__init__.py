"""Many folds as one: pairs are found, planned, folded in processes, and recorded.

The modules in the order of the data: ``folders`` and ``manifest`` give pairs, ``tasks`` makes
a plan of them, ``ledger`` and ``store_ledger`` know what is done, ``execute`` hands the rest to
``worker`` in other processes, and ``table``, ``report_file`` and ``progress`` tell. ``run`` is
all of it. ``storage`` is beneath: paths and URLs.
"""
