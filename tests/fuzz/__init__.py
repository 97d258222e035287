"""Bad input in quantity: every parser is given thousands of broken files, under limits of time and memory."""
