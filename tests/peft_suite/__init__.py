"""PEFT's own tests, run on the configurations of this package.

PEFT's wheel has no tests but its source distribution has. :mod:`peft_suite.source` fetches the one of the installed
version into ``.cache/``, :mod:`peft_suite.retarget` puts our cases (:mod:`peft_suite.cases`) in the place of PEFT's,
and small random models (:mod:`peft_suite.local_models`) stand in for those of the Hub. Which tests are left out and
why is in the modules that pytest collects. The tier runs only when asked for: ``pytest -m peft_suite``.
"""
