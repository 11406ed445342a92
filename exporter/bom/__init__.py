"""What a package is made of, for those who answer for it: licences and a CycloneDX ML-BOM."""
