"""What pytest does not collect here."""

collect_ignore = ["pretended_laws.py"]  # a program: importing it puts a pretended card into the process
