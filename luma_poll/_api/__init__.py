"""The words of the API: parameters, headers, answers, errors and outcomes."""
