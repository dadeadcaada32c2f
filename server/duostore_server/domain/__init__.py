"""The words of Duostore: values, policies, errors and ports. Imports nothing else of ours."""
